use super::*;
use crate::report::document::{Column, Figure, Warning};
use serde_json::json;

fn document() -> Document {
    let mut document = Document {
        title: "Similarity: base, SIBO <λ=0.3> & \"co\"".into(),
        question: "Do tokens grow alike?".into(),
        answers: vec!["base: yes, from 0.1 to 0.7.".into(), "</li><script>alert(1)</script>".into()],
        warnings: vec![Warning::general("Few texts."), Warning::of_measure("cosine", "No rank.").of_run("base")],
        methods: vec!["Texts: a.txt.".into()],
        provenance: vec![("command".into(), "smooth-probe 'a b'".into())],
        ..Document::default()
    };
    let table = DataTable {
        caption: "Means.".into(),
        columns: vec![Column::text("run"), Column::number("Δ")],
        rows: vec![
            vec![
                Cell { warnings: vec![2], ..Cell::text("it's <b>") },
                Cell { bold: true, ..Cell::change(Some(-0.25), 2) },
            ],
            vec![Cell::text("base")],
        ],
    };
    let figure = Figure {
        stem: "similarity".into(),
        svg: "<svg width=\"504pt\" height=\"9pt\" viewBox=\"0 0 10 4\" role=\"img\"><title>t</title></svg>\n".into(),
        caption: "Curves <of> runs.".into(),
    };
    let data = json!({"runs": ["</script><b>"], "series": [0.1], "sign": "a<b>&c"});
    let blocks = vec![
        Block::View(View { kind: ViewKind::Explorer, data }),
        Block::Text("A line & more.".into()),
        Block::Folded("Folded <part>".into(), vec![Block::Table(table), Block::List(vec!["a".into(), "<b>".into()])]),
        Block::Figure(figure),
    ];
    document.section("Explore & see", blocks);
    document
}

/// What a reader sees of a page without scripts: its text, a line each.
fn text(page: &str) -> String {
    let body = page.split_once("<body>").unwrap().1;
    let mut lines = Vec::new();
    let mut rest = body;
    while let Some((before, after)) = rest.split_once('<') {
        lines.push(before.trim().to_owned());
        let (tag, behind) = after.split_once('>').unwrap();
        rest = if tag.starts_with("script") { behind.split_once("</script>").unwrap().1 } else { behind };
    }
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#x27;", "'"), ("&#x2f;", "/"), ("&amp;", "&")];
    let plain = |line: &String| entities.iter().fold(line.clone(), |line, (from, to)| line.replace(from, to));
    lines.iter().filter(|line| !line.is_empty()).map(plain).collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn the_text_of_a_small_page() {
    let found = text(&document().html().unwrap());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/report/html/small_page.txt");
    if std::env::var_os("SMOOTH_PROBE_WRITE_DOCS").is_some() {
        std::fs::write(path, &found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(path).unwrap(), "written anew by SMOOTH_PROBE_WRITE_DOCS=1");
}

#[test]
fn nothing_that_is_given_becomes_markup() {
    let page = document().html().unwrap();
    for wanted in [
        "<title>Similarity: base, SIBO &lt;λ=0.3&gt; &amp; &quot;co&quot;</title>",
        "{\"runs\":[\"\\u003c/script>\\u003cb>\"],\"series\":[0.1],\"sign\":\"a\\u003cb>&c\"}</script>",
        "<td class=\"short\">it&#x27;s &lt;b&gt;<a class=\"mark\" href=\"#warning-2\" aria-label=\"warning 2\">2</a></td>",
        "<td class=\"number\" data-value=\"-0.25\"><b>−0.25</b></td>",
        "<svg class=\"print\" viewBox=\"0 0 10 4\" role=\"img\"><title>t</title></svg>",
    ] {
        assert!(page.contains(wanted), "{wanted} is not in {page}");
    }
    assert!(!page.contains("<script>alert") && !page.contains("504pt"));
}

#[test]
fn a_page_names_no_place_outside_itself() {
    let page = document().html().unwrap();
    assert!(page.contains("default-src 'none'"));
    for forbidden in ["http://", "https://", "src=", "@import", "url(", "fetch(", "XMLHttpRequest", "//cdn"] {
        let known = page.matches(forbidden).count();
        // The namespace of shapes is a name, and asked for by nobody.
        let names = if forbidden == "http://" { page.matches("http://www.w3.org/2000/svg").count() } else { 0 };
        assert_eq!(known, names, "{forbidden}");
    }
}

#[test]
fn scripts_stand_only_where_a_view_needs_them_and_a_page_has_an_end() {
    let mut document = document();
    let page = document.html().unwrap();
    assert!(page.contains("Probe.data(\"explorer\")") && !page.contains("Probe.data(\"heatmaps\")"));
    document.sections.clear();
    assert!(!document.html().unwrap().contains("const Probe"));
    document.methods = vec!["x".repeat(MOST_BYTES)];
    assert!(matches!(document.html(), Err(HtmlError::TooLarge { bytes }) if bytes > MOST_BYTES));
}
