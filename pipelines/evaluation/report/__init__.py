"""Reports to read and to look at: rows of figures, tables, sheets, plots and pages."""
