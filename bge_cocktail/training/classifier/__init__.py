"""Encoders with a classification head: trained, judged, predicting, merged."""
