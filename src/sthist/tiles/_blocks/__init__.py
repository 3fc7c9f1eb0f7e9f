"""Output built block by block, resumable, on one machine or several."""
