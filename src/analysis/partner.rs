//! The reference run beside the measured one, in step: each of its states is there while it is compared, and no
//! longer, whatever the depth.

use crate::data::Packed;
use crate::measures::Point;
use crate::model::ModelError;
use crate::probe::{Probe, Site};
use candle_core::Tensor;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The receiving end: the reference run's states in the order of its forward pass.
#[derive(Debug)]
pub(super) struct Partner {
    states: Receiver<(Point, Tensor)>,
    next: Option<(Point, Tensor)>,
}

impl Partner {
    /// The reference run's states at a point; `None` if it has no such point. Points must be asked for in the order of
    /// a forward pass.
    pub(super) fn at(&mut self, point: Point) -> Option<Tensor> {
        loop {
            let (at, states) = match self.next.take() {
                Some(next) => next,
                None => self.states.recv().ok()?,
            };
            match (at.layer, at.site).cmp(&(point.layer, point.site)) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Some(states),
                std::cmp::Ordering::Greater => {
                    self.next = Some((at, states));
                    return None;
                }
            }
        }
    }
}

/// The sending end: the probe of the reference run.
pub(super) struct Sender<'a> {
    states: SyncSender<(Point, Tensor)>,
    wanted: &'a [Point],
}

/// Both ends; at most one state waits between them.
pub(super) fn partners(wanted: &[Point]) -> (Sender<'_>, Partner) {
    let (sender, receiver) = sync_channel(1);
    (Sender { states: sender, wanted }, Partner { states: receiver, next: None })
}

impl Probe for Sender<'_> {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, _: &Packed) -> Result<(), ModelError> {
        // The other end hangs up when it needs no more, or failed and says so itself.
        let _ = self.states.send((Point { site, layer }, states.clone()));
        Ok(())
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        self.wanted.contains(&Point { site, layer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn points_that_one_side_lacks_are_passed_over() {
        let point = |layer| Point { site: Site::Block, layer };
        let wanted = [point(1), point(3), point(4)];
        let (mut sender, mut partner) = partners(&wanted);
        let batch = Packed::from_sequences(&[[1u32]]);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for layer in [1, 3, 4] {
                    let states = Tensor::new(&[layer as f32], &Device::Cpu).unwrap();
                    sender.record(Site::Block, layer, &states, &batch).unwrap();
                }
            });
            let mut found = |layer| partner.at(point(layer)).map(|t| t.to_vec1::<f32>().unwrap()[0]);
            assert_eq!([found(1), found(2), found(4), found(5)], [Some(1.0), None, Some(4.0), None]);
        });
    }
}
