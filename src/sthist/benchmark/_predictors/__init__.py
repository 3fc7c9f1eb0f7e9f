"""What benchmarks of predictors share: folds of slides and patients, time and memory."""
