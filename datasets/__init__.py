"""Data: `voc` (one VOC-layout dataset), `transforms` (joint), `synthetic` (the demo data)."""
