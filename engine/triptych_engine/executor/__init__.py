"""What computes: `base` is the contract, `torch` the model on a device, `sim` an integer model without torch."""
