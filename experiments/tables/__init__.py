"""The tables that prove what the README says, a module each."""
