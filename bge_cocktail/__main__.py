"""``python -m bge_cocktail``."""

from bge_cocktail.cli import main

if __name__ == "__main__":
    main()
