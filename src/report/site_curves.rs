//! What was measured inside the blocks, as a figure: a panel a site, in the order of a forward pass.

use super::chart::{Chart, Panel, Point, Scale, Series};
use super::curves::{self, CurveOptions, Curves, Depth};
use super::rows::SimilarityRow;
use crate::probe::Site;

/// What kind of vectors a site holds; panels of one kind share their vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The residual stream.
    Stream,
    /// What a sub-layer or a head adds.
    Added,
    /// What PEFT changes in it.
    Peft,
    /// What h0 changes in it.
    H0,
}

fn kind(site: Site) -> Kind {
    match site {
        Site::Attention | Site::Head(_) | Site::FeedForward => Kind::Added,
        Site::AttentionPeft | Site::FeedForwardPeft => Kind::Peft,
        Site::AttentionH0 | Site::FeedForwardH0 => Kind::H0,
        _ => Kind::Stream,
    }
}

fn title(site: Site) -> String {
    match site {
        Site::Head(head) => return format!("what head {head} adds"),
        Site::Embedding => "embedding",
        Site::Attention => "what attention adds",
        Site::AttentionPeft => "of it, what PEFT changes",
        Site::AttentionH0 => "of it, what h0 changes",
        Site::AfterAttention => "after attention",
        Site::AfterAttentionNoPeft => "after attention, without PEFT",
        Site::AfterAttentionNoH0 => "after attention, without h0",
        Site::FeedForward => "what the feed-forward adds",
        Site::FeedForwardPeft => "of it, what PEFT changes",
        Site::FeedForwardH0 => "of it, what h0 changes",
        Site::Block => "after the block",
        Site::BlockNoPeft => "after the block, without PEFT",
        Site::BlockNoH0 => "after the block, without h0",
        Site::FinalNorm => "after the final norm",
    }
    .to_owned()
}

/// The stream of which a site is the counterfactual.
fn whole(site: Site) -> Option<Site> {
    match site {
        Site::AfterAttentionNoPeft | Site::AfterAttentionNoH0 => Some(Site::AfterAttention),
        Site::BlockNoPeft | Site::BlockNoH0 => Some(Site::Block),
        _ => None,
    }
}

/// The figure of the first measure and token set of `options` at every site inside the blocks, the blocks' own
/// stream beside them; `None` where nothing but that stream was measured.
///
/// A run without PEFT (or without h0) has, by construction, the same stream with and without it: a panel in which
/// this is so for every run is left out, and so is a change that is zero everywhere.
#[must_use]
pub fn site_chart(rows: &[SimilarityRow], options: &CurveOptions) -> Option<Chart> {
    let (measure, tokens) = options.panels.first()?;
    let at =
        |row: &SimilarityRow| row.site.parse::<Site>().ok().filter(|s| *s != Site::Embedding && *s != Site::FinalNorm);
    let own: Vec<(Site, &SimilarityRow)> = rows
        .iter()
        .filter(|row| row.measure == *measure && row.tokens == *tokens)
        .filter_map(|row| Some((at(row)?, row)))
        .collect();
    let mut sites: Vec<Site> = own.iter().filter(|(_, row)| row.mean.is_some()).map(|(site, _)| *site).collect();
    sites.sort_unstable();
    sites.dedup();
    if sites.iter().all(|site| *site == Site::Block) {
        return None;
    }
    let curves = Curves::of(rows);
    let panel = |site: Site| {
        let rows: Vec<&SimilarityRow> = own.iter().filter(|(at, _)| *at == site).map(|(_, row)| *row).collect();
        let mut panel = curves.panel(&rows, measure, options);
        if matches!(kind(site), Kind::Peft | Kind::H0) {
            panel.series.retain(|series| series.points.iter().any(|point| point.y.is_some_and(|y| y != 0.0)));
        }
        Panel { title: title(site), ..panel }
    };
    let all: Vec<(Site, Panel)> = sites.into_iter().map(|site| (site, panel(site))).collect();
    let same = |site: Site, panel: &Panel| {
        let whole = all.iter().find(|(other, _)| Some(*other) == whole(site));
        whole.is_some_and(|(_, whole)| same_curves(&whole.series, &panel.series))
    };
    let says = |(site, panel): &&(Site, Panel)| !panel.series.is_empty() && !same(*site, panel);
    let mut panels: Vec<(Site, Panel)> = all.iter().filter(says).cloned().collect();
    let left_out = panels.len() < all.len();
    let axes = share_axes(&mut panels);

    let drawn: Vec<&SimilarityRow> =
        own.iter().filter(|(site, _)| panels.iter().any(|(shown, _)| shown == site)).map(|(_, row)| *row).collect();
    let mut notes = curves::notes(&drawn, options);
    if panels.iter().any(|(site, _)| whole(*site).is_some()) {
        notes.push("Without PEFT, without h0: in this sub-layer alone; what comes before it is as it was.".to_owned());
    }
    if axes > 1 {
        notes.push("Scales differ: only panels of one kind share their vertical axis.".to_owned());
    }
    if left_out {
        notes.push(
            "Left out: what is the same, or zero, by construction, since no run has PEFT or h0 there.".to_owned(),
        );
    }
    let shown: Vec<Site> = panels.iter().map(|(site, _)| *site).collect();
    Some(Chart {
        title: options.title.clone(),
        subtitle: curves::subtitle(&drawn, options),
        x_label: curves::x_label(&drawn, options.depth),
        x_scale: if options.depth == Depth::Layers { Scale::Whole } else { Scale::Linear },
        columns: Some(columns(&shown)),
        panels: panels.into_iter().map(|(_, panel)| panel).collect(),
        notes,
        width: options.width,
    })
}

fn same_curves(a: &[Series], b: &[Series]) -> bool {
    let same = |a: &Series, b: &Series| {
        a.label == b.label && a.points.iter().map(|p| (p.x, p.y)).eq(b.points.iter().map(|p| (p.x, p.y)))
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

/// Three where a row then holds a sub-layer's vectors as they are, without PEFT and without h0; else two, which
/// keeps a page of few sites readable.
fn columns(sites: &[Site]) -> usize {
    let group = |site: &Site| match site {
        Site::Attention | Site::AttentionPeft | Site::AttentionH0 => 0,
        Site::AfterAttention | Site::AfterAttentionNoPeft | Site::AfterAttentionNoH0 => 1,
        Site::FeedForward | Site::FeedForwardPeft | Site::FeedForwardH0 => 2,
        Site::Block | Site::BlockNoPeft | Site::BlockNoH0 => 3,
        Site::Head(_) | Site::Embedding | Site::FinalNorm => 4,
    };
    let threes =
        sites.chunks(3).all(|row| row.len() == 3 && row.iter().all(|s| row.first().map(group) == Some(group(s))));
    let many = sites.len() > 8;
    if threes || many { 3 } else { 2 }
}

/// Gives the kinds a vertical axis in common where that leaves each at least half of it; gives the number of axes.
fn share_axes(panels: &mut [(Site, Panel)]) -> usize {
    type Span = (f64, f64);
    let union = |a: Span, b: Span| (a.0.min(b.0), a.1.max(b.1));
    let mut axes: Vec<Vec<(Kind, Span)>> = Vec::new();
    for own in [Kind::Stream, Kind::Added, Kind::Peft, Kind::H0] {
        let of = panels.iter().filter(|(site, _)| kind(*site) == own);
        let points = of.flat_map(|(_, panel)| &panel.series).flat_map(|series| &series.points);
        let Some(span) = points.fold(None, widened) else { continue };
        let fits = |axis: &&mut Vec<(Kind, Span)>| {
            let all = axis.iter().fold(span, |all, (_, span)| union(all, *span));
            let least = axis.iter().map(|(_, span)| span.1 - span.0).fold(span.1 - span.0, f64::min);
            2.0 * least >= all.1 - all.0
        };
        match axes.iter_mut().find(fits) {
            Some(axis) => axis.push((own, span)),
            None => axes.push(vec![(own, span)]),
        }
    }
    for (site, panel) in panels {
        let axis = axes.iter().find(|axis| axis.iter().any(|(own, _)| *own == kind(*site)));
        panel.y_range = axis.and_then(|axis| axis.iter().map(|(_, span)| *span).reduce(union));
    }
    axes.len()
}

fn widened(span: Option<(f64, f64)>, point: &Point) -> Option<(f64, f64)> {
    let Some(y) = point.y else { return span };
    let (low, high) = point.interval.unwrap_or((y, y));
    let (low, high) = (low.min(y), high.max(y));
    Some(span.map_or((low, high), |(a, b)| (a.min(low), b.max(high))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::Width;
    use crate::report::curves::Shown;

    fn row(run: &str, site: &str, layer: u32, mean: f64) -> SimilarityRow {
        SimilarityRow {
            run: run.into(),
            group: None,
            layer,
            site: site.into(),
            measure: "cosine".into(),
            tokens: "all".into(),
            mean: Some(mean),
            std: None,
            ci_low: None,
            ci_high: None,
            texts: 9,
            reference: None,
            diff: None,
            diff_ci_low: None,
            diff_ci_high: None,
        }
    }

    fn curve(run: &str, site: &str, scale: f64) -> Vec<SimilarityRow> {
        (1..=3).map(|layer| row(run, site, layer, scale * f64::from(layer))).collect()
    }

    fn options() -> CurveOptions {
        let panels = vec![("cosine".to_owned(), "all".to_owned())];
        let (depth, shown) = (Depth::Layers, Shown::Mean);
        CurveOptions { title: "t".into(), panels, depth, shown, width: Width::TwoColumn }
    }

    fn titles(chart: &Chart) -> Vec<&str> {
        chart.panels.iter().map(|panel| panel.title.as_str()).collect()
    }

    #[test]
    fn panels_follow_the_forward_pass_and_what_says_the_same_is_left_out() {
        let mut rows = vec![row("base", "embedding", 0, 9.0), row("base", "final_norm", 3, 9.0)];
        rows.extend(curve("base", "block_no_peft", 0.2));
        rows.extend(curve("base", "block", 0.2));
        rows.extend(curve("base", "attention_peft", 0.0));
        rows.extend(curve("base", "after_attention", 0.15));
        rows.extend(curve("base", "attention", 0.13));
        let chart = site_chart(&rows, &options()).unwrap();
        assert_eq!(titles(&chart), ["what attention adds", "after attention", "after the block"]);
        assert_eq!((chart.x_label.as_str(), chart.columns), ("layer (1…L = blocks)", Some(2)));
        assert!(chart.notes.iter().any(|note| note.starts_with("Left out:")));
        assert!(chart.panels.iter().all(|panel| panel.y_range == Some((0.13, 0.2 * 3.0))), "{chart:?}");
        let only_blocks: Vec<SimilarityRow> = rows.into_iter().filter(|row| row.site == "block").collect();
        assert_eq!(site_chart(&only_blocks, &options()), None);
    }

    #[test]
    fn one_run_with_peft_keeps_the_panel_for_all_and_a_run_looks_the_same_where_another_has_no_value() {
        let sites = ["attention", "attention_peft", "after_attention", "after_attention_no_peft"];
        let mut rows: Vec<SimilarityRow> = sites.iter().flat_map(|site| curve("base", site, 0.1)).collect();
        rows.iter_mut().filter(|row| row.site == "attention_peft").for_each(|row| row.mean = None);
        rows.extend(sites.iter().zip([0.1, 0.001, 0.3, 0.2]).flat_map(|(site, scale)| curve("SIBO", site, scale)));
        let chart = site_chart(&rows, &options()).unwrap();
        assert_eq!(titles(&chart)[3], "after attention, without PEFT");
        let drawn = |panel: usize| -> Vec<(&str, usize)> {
            chart.panels[panel].series.iter().map(|s| (s.label.as_str(), s.style)).collect()
        };
        assert_eq!((drawn(1), drawn(3)), (vec![("SIBO", 1)], vec![("base", 0), ("SIBO", 1)]));
        let ranges: Vec<_> = chart.panels.iter().map(|panel| panel.y_range).collect();
        assert_eq!(ranges[2], ranges[3]);
        assert_eq!(ranges[1], Some((0.001, 0.003)), "too small for the others' axis");
        assert!(chart.notes.iter().any(|note| note.starts_with("Scales differ")));
    }

    #[test]
    fn a_row_holds_a_sub_layer_with_and_without() {
        let full = [Site::Attention, Site::AttentionPeft, Site::AttentionH0];
        let stream = [Site::AfterAttention, Site::AfterAttentionNoPeft, Site::AfterAttentionNoH0];
        assert_eq!(columns(&[full, stream].concat()), 3);
        assert_eq!(columns(&[full[0], full[1], stream[0], stream[1]]), 2);
        assert_eq!(columns(&[full[0], stream[0], Site::FeedForward]), 2);
    }
}
