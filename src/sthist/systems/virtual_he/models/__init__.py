"""The models of virtual H&E."""
