"""What people read off an expression map: gene-set scores, regions, lymphoid structures, volumes; measured or predicted."""
