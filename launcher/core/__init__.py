"""What every room uses: errors, running programs, atomic files, YAML with lines, secrets, GitHub's own formats."""
