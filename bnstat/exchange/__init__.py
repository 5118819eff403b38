"""What an export is called and made of, and the forms for other frameworks."""
