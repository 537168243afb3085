"""What a forecast is: trace, features, forecasters, calibration, reclaim arithmetic, registry."""
