"""Where scikit-learn meets the rest."""
