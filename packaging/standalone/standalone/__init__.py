"""How the standalone folder is made: `assemble` has the steps in order, `rules` what is kept and what is left out."""
