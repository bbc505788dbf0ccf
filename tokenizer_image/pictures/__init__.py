"""Any source of pictures to examples: loading, splits, folders, archives, tables, the pixel cache."""
