"""Faults that the campaign of scripts/fault_campaign.py raises, one module per kind."""
