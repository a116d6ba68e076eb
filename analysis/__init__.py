"""Result files in; correlations, thresholds, figures and the report out. Needs no training stack."""
