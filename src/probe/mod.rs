//! What reads the hidden states during a forward pass.
