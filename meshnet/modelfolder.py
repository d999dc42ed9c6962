"""The old home of ``load_model``, which model cards on the Hub still name."""

raise ImportError("meshnet.modelfolder is gone: write 'from meshnet import load_model' instead")
