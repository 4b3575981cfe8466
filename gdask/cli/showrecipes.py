"""showrecipes: the recipes for a file, or the text of one."""

from __future__ import annotations

from gdask.cli import existing_file, parser_for, run_command


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed, 2 usage."""
    parser = parser_for(
        "showrecipes",
        "Show the recipes for a file, or the text of one of them.",
        "  showrecipes raw/S20170505S0095.fits -r reduce",
    )
    parser.add_argument("file", help="a FITS file")
    parser.add_argument("-r", "--recipe", help="recipe whose text is shown")
    parser.add_argument("--all", action="store_true", help="list every recipe of every instrument")
    return run_command(
        parser, argv, lambda args: _show(existing_file(args.file), args.recipe, args.all)
    )


def _show(path: str, name: str | None, everything: bool) -> int:
    import inspect

    from gdask.instruments import tags
    from gdask.reduction import recipe_library

    if name:
        recipe = recipe_library.find_recipe(name, tags(path))
        print(inspect.getsource(recipe), end="")
        print(f"\nsteps: {', '.join(recipe_library.steps_in(recipe))}")
        return 0
    modules = recipe_library.libraries() if everything else [recipe_library.library_for(tags(path))]
    for module in modules:
        print(f"{module.__name__} for {' '.join(sorted(module.TAGS))}")
        for recipe_name, function in recipe_library.recipes_of(module).items():
            same = f" ({function.__name__})" if recipe_name == "default" else ""
            print(f"    {recipe_name + same:32} {(inspect.getdoc(function) or '').splitlines()[0]}")
    return 0
