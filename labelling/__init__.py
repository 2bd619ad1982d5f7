"""Step 3: localization maps on disk, the rule that turns them into labels, scores, and the CRF."""
