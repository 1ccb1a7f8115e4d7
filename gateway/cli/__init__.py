"""The command line; `main` is the installed program, imported late so that the package itself costs nothing."""


def main() -> None:
    """Run `llm-proxy`."""
    from gateway.cli.program import main as run

    run()
