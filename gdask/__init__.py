"""gdask: lazy, out-of-core, distributed reduction of Gemini near-infrared imaging."""

__version__ = "0.1.0"
