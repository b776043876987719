"""Read clinical records into a store of rows and print them as Markdown."""
