"""Build samples as the paper describes and its release does: `data.protocol=paper`."""
