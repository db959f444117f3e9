"""Arrays in, a trained network out; no estimator is known here."""
