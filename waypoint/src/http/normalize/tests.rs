//! Unit tests of normalisation.
