"""Faults that the campaign of tests/fault_campaign.py raises, one module per kind."""
