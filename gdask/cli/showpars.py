"""showpars: the parameters of a step, for a file."""

from __future__ import annotations

from gdask.cli import existing_file, parser_for, run_command


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed, 2 usage."""
    parser = parser_for(
        "showpars",
        "Show the parameters of a step, with the defaults for the file's instrument.",
        "  showpars raw/S20170505S0095.fits skyCorrect",
    )
    parser.add_argument("file", help="a FITS file")
    parser.add_argument(
        "step",
        nargs="?",
        help="step name, as in skyCorrect or sky_correct; without it, all steps are listed",
    )
    return run_command(parser, argv, lambda args: _show(existing_file(args.file), args.step))


def _show(path: str, name: str | None) -> int:
    import inspect

    from gdask import params, steps
    from gdask.instruments import instrument_of, step_defaults
    from gdask.model import UsageError

    instrument = instrument_of(path)
    known = {step: getattr(steps, step) for step in steps.__all__}
    if name is None:
        for step, function in known.items():
            print(f"{step:32} {(inspect.getdoc(function) or '').splitlines()[0]}")
        return 0
    wanted = params.snake_case(name)
    if wanted not in known:
        raise UsageError(f"{name}: no such step{params.closest(wanted, known)}")
    facts = step_defaults(instrument, wanted)
    print(f"{wanted}: {(inspect.getdoc(known[wanted]) or '').splitlines()[0]}")
    for key, parameter in params.parameters(known[wanted]).items():
        default = facts.get(key, parameter.default)
        layer = f" ({instrument.name})" if key in facts else ""
        print(
            f"    {key:18} {default!s:10} "
            f"{params.describe(parameter)}{layer}\n{'':8}{parameter.help}"
        )
    return 0
