"""What is read: inputs, targets, and features of regions and their neighbours."""
