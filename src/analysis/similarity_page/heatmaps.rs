//! The heat maps of a page: upper triangles in ten-thousandths.

use super::read::HeatMapTable;
use serde_json::{Value, json};

/// Bytes that the maps may take in a page.
const MOST_BYTES: usize = 250_000;

/// The data of the view; `None` without a map that fits.
pub(super) fn data(tables: &[HeatMapTable]) -> Option<Value> {
    let (mut maps, mut left_out, mut bytes) = (Vec::new(), Vec::new(), 0);
    for table in tables {
        let map = map(table);
        let size = map.to_string().len();
        if bytes + size > MOST_BYTES {
            left_out.push(format!("heatmap/{}.csv", table.stem));
        } else {
            bytes += size;
            maps.push(map);
        }
    }
    (!maps.is_empty()).then(|| json!({"maps": maps, "left_out": left_out}))
}

fn map(table: &HeatMapTable) -> Value {
    let first = table.cells.first().map_or(0, |cell| cell.row);
    let row = table.cells.iter().take_while(|cell| cell.row == first);
    let tokens: Vec<&str> = row.map(|cell| cell.token_column.as_str()).collect();
    let upper = table.cells.iter().filter(|cell| cell.column >= cell.row);
    let whole = |cosine: f64| (cosine * 10_000.0).round() as i64;
    let cosines: Vec<Option<i64>> = upper.map(|cell| cell.cosine.map(whole)).collect();
    json!({
        "run": table.run, "text": table.text, "layer": table.layer, "site": table.site, "first": first,
        "tokens": tokens, "cosines": cosines,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::HeatMapRow;

    fn table(n: u32) -> HeatMapTable {
        let cell = |at: u32| HeatMapRow {
            row: 4 + at / n,
            column: 4 + at % n,
            token_row: format!("<t{}>", at / n),
            token_column: format!("<t{}>", at % n),
            cosine: (at != 1 && at != n).then(|| f64::from((at / n) * (at % n)) / 7.0),
        };
        HeatMapTable {
            stem: format!("a{n}"),
            run: "a".into(),
            text: 9,
            layer: 3,
            site: "block".into(),
            cells: (0..n * n).map(cell).collect(),
        }
    }

    #[test]
    fn a_map_is_its_upper_triangle_and_a_large_one_is_named() {
        let data = data(&[table(3), table(400)]).unwrap();
        assert_eq!(data["left_out"], json!(["heatmap/a400.csv"]));
        let map = &data["maps"][0];
        assert_eq!((&map["first"], &map["tokens"]), (&json!(4), &json!(["<t0>", "<t1>", "<t2>"])));
        assert_eq!(map["cosines"], json!([0, null, 0, 1429, 2857, 5714]));
        assert_eq!(super::data(&[]), None);
    }
}
