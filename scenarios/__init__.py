"""Scenario files shipped with fedcl."""
