//! Analyses over models and adapters: similarity curves and the headline study.
