"""Virtual H&E from a nuclear stain and transcripts: ST2HE, Pix2Pix, and a built-in model without weights."""
