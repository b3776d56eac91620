//! What the linears of a block are for.

/// What a linear of a block is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Attention's query projection.
    Query,
    /// Attention's key projection.
    Key,
    /// Attention's value projection.
    Value,
    /// The three in one.
    QueryKeyValue,
    /// Attention's output projection.
    AttentionOutput,
    /// The gate of a gated feed-forward.
    Gate,
    /// The feed-forward's first linear.
    Up,
    /// Gate and first linear in one, the half that is activated first.
    GateUp,
    /// The feed-forward's last linear.
    Down,
}

impl Role {
    /// Every role, in the order in which a block computes them.
    pub const ALL: [Self; 9] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::QueryKeyValue,
        Self::AttentionOutput,
        Self::Gate,
        Self::Up,
        Self::GateUp,
        Self::Down,
    ];

    /// The role's place in [`Role::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether the linear reads the residual stream or a norm of it (token states of width d).
    #[must_use]
    pub fn reads_stream(self) -> bool {
        !matches!(self, Self::AttentionOutput | Self::Down)
    }
}
