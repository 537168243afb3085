"""How a forecaster is made and judged: importers, data set, fit, calibration, backtest."""
