//! A model's name or folder to its files.
