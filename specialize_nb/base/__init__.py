"""What every wing stands on: data, files, results, words, seeds."""
