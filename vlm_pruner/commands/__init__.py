"""One module per subcommand of `vlm-pruner`. The only room that knows argparse, tables and screens."""
