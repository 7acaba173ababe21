"""The operations a model is written over; one file for each kind of device, and the reference for all of them."""
