"""Processes of measured jobs: started, waited for, and always ended."""
