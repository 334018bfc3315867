"""Constants of kernel profiles from measurements, and how far the predictions are from measured machines."""
