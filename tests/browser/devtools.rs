//! A headless Chromium, driven over its DevTools pipe: messages of JSON, each ended by a zero byte.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A page in a browser.
pub struct Browser {
    process: Child,
    write: ChildStdin,
    read: BufReader<ChildStdout>,
    session: String,
    sent: u64,
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How a page is looked at: width in pixels, and whether in the dark.
#[derive(Debug, Clone, Copy)]
pub struct Looked {
    pub name: &'static str,
    pub width: u32,
    pub dark: bool,
}

pub const LOOKS: [Looked; 4] = [
    Looked { name: "desktop-light", width: 1280, dark: false },
    Looked { name: "desktop-dark", width: 1280, dark: true },
    Looked { name: "phone-light", width: 390, dark: false },
    Looked { name: "phone-dark", width: 390, dark: true },
];

impl Browser {
    /// A browser, unless there is none on this machine.
    pub fn start() -> Option<Self> {
        let named = std::env::var("SMOOTH_PROBE_CHROMIUM").ok();
        let candidates = named.into_iter().chain(["chromium", "chromium-browser", "google-chrome"].map(str::to_owned));
        let runs = |name: &String| {
            let version = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            version.is_ok_and(|status| status.success())
        };
        let Some(program) = candidates.into_iter().find(runs) else {
            println!("SKIPPED: no chromium on the path; SMOOTH_PROBE_CHROMIUM names one");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        // The pipe's ends are 3 and 4; a shell moves them there.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null", &program])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (write, read) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut browser =
            Self { process, write, read, session: String::new(), sent: 0, events: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn receive(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.read.read_until(0, &mut bytes).unwrap();
        assert!(!bytes.is_empty(), "the browser went away");
        bytes.pop();
        serde_json::from_slice(&bytes).unwrap()
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.write.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let answer = self.receive();
            if answer["id"] == self.sent {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    /// Opens a file and waits until it is there.
    pub fn open(&mut self, page: &Path, look: Looked) {
        let phone = look.width < 500;
        let size = json!({"width": look.width, "height": 900, "deviceScaleFactor": 1, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = if look.dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media);
        self.events.clear();
        self.call("Page.navigate", json!({"url": format!("file://{}", page.display())}));
        let loaded = |event: &Value| event["method"] == "Page.loadEventFired";
        while !self.events.iter().any(loaded) {
            let event = self.receive();
            self.events.push(event);
        }
    }

    /// What an expression gives in the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The text of what a selector finds.
    pub fn text(&mut self, selector: &str) -> String {
        let found = self.evaluate(&format!("document.querySelector({}).textContent", json!(selector)));
        found.as_str().unwrap().to_owned()
    }

    /// Chooses an option of a list by its words.
    pub fn choose(&mut self, id: &str, words: &str) {
        let done = self.evaluate(&format!(
            "(() => {{ const box = document.getElementById({}); const option = [...box.options].find((o) => o.text === {}); \
             if (!option) return [...box.options].map((o) => o.text); \
             box.value = option.value; box.dispatchEvent(new Event('change')); return true; }})()",
            json!(id),
            json!(words)
        ));
        assert_eq!(done, json!(true), "{id} has no {words}");
    }

    /// Presses a key in what a selector finds, as a reader does: focus, then the key.
    pub fn press(&mut self, selector: &str, key: &str) {
        self.evaluate(&format!("document.querySelector({}).focus()", json!(selector)));
        for kind in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", json!({"type": kind, "key": key, "code": key}));
        }
    }

    /// Moves the mouse to a place within what a selector finds, as shares of its width and height.
    pub fn point(&mut self, selector: &str, (x, y): (f64, f64)) {
        let frame = self.evaluate(&format!(
            "(() => {{ const e = document.querySelector({}); e.scrollIntoView({{block: 'center'}}); \
             const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; }})()",
            json!(selector)
        ));
        let of = |i: usize| frame[i].as_f64().unwrap();
        let at = json!({"type": "mouseMoved", "x": of(0) + x * of(2), "y": of(1) + y * of(3)});
        self.call("Input.dispatchMouseEvent", at);
    }

    /// Cells of a table's body, row by row.
    pub fn table(&mut self, selector: &str) -> Vec<Vec<String>> {
        let rows = self.evaluate(&format!(
            "[...document.querySelector({}).tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent))",
            json!(selector)
        ));
        serde_json::from_value(rows).unwrap()
    }

    /// Asserts that the page asked for nothing but itself and that nothing in it failed.
    pub fn assert_alone_and_sound(&mut self, page: &Path) {
        // Whatever still comes has come after this.
        self.evaluate("new Promise((done) => setTimeout(done, 150))");
        let own = format!("file://{}", page.display());
        for event in &self.events {
            let (method, params) = (event["method"].as_str().unwrap_or_default(), &event["params"]);
            match method {
                "Network.requestWillBeSent" => {
                    let url = params["request"]["url"].as_str().unwrap();
                    assert!(url.split('#').next() == Some(own.as_str()) || url.starts_with("data:"), "asked for {url}");
                }
                "Runtime.exceptionThrown" | "Log.entryAdded" => panic!("{method}: {params}"),
                _ => {}
            }
        }
    }

    /// Asserts that nothing hangs over the window's edge, that every image and control has a name, and that words stand
    /// out from what is behind them.
    pub fn assert_readable(&mut self, look: Looked) {
        let width = self.evaluate("document.documentElement.scrollWidth");
        assert_eq!(width, json!(look.width), "{look:?}: wider than the window");
        let unnamed = self.evaluate(
            "[...document.querySelectorAll('[role=img], [role=region], select, input')].filter((e) => \
             !e.getAttribute('aria-label') && !e.closest('label') && !e.querySelector('title')).map((e) => e.outerHTML.slice(0, 120))",
        );
        assert_eq!(unnamed, json!([]), "{look:?}: has no name");
        let faint = self.evaluate(CONTRAST);
        assert_eq!(faint, json!([]), "{look:?}: too faint");
    }

    /// Keeps a picture of the whole page, if SMOOTH_PROBE_SHOTS names a folder.
    pub fn shoot(&mut self, name: &str, look: Looked) {
        let Some(folder) = std::env::var_os("SMOOTH_PROBE_SHOTS") else { return };
        let size = self.call("Page.getLayoutMetrics", json!({}))["cssContentSize"].clone();
        let height = size["height"].as_f64().unwrap().min(8000.0);
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1});
        let shot = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let data = self.call("Page.captureScreenshot", shot)["data"].as_str().unwrap().to_owned();
        let path = Path::new(&folder).join(format!("{name}-{}.png", look.name));
        std::fs::write(path, decoded(&data)).unwrap();
    }
}

/// Colours of words under 4.5 : 1 against the paper, and of curves under 3 : 1 (WCAG 2.2, 1.4.3 and 1.4.11).
const CONTRAST: &str = r"(() => {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  const light = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * c, 0);
  const ratio = (a, b) => { const [x, y] = [light(value(a)), light(value(b))]; return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05); };
  const wanted = [['--ink', 4.5], ['--soft', 4.5], ['--link', 4.5]].flatMap(([ink, least]) => [[ink, '--paper', least], [ink, '--raised', least]])
    .concat([['--warn', '--warn-paper', 4.5], ['--warn', '--raised', 4.5]])
    .concat([0, 1, 2, 3, 4, 5, 6].map((i) => ['--s' + i, '--paper', 3]));
  return wanted.filter(([a, b, least]) => ratio(a, b) < least).map(([a, b]) => a + ' on ' + b + ': ' + ratio(a, b).toFixed(2));
})()";

/// The bytes of base64.
fn decoded(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u32> = text.bytes().filter(|c| *c != b'=').map(|c| u32::from(digit(c))).collect();
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let whole = (0..4).fold(0, |whole, i| (whole << 6) | group.get(i).copied().unwrap_or(0));
        bytes.extend(whole.to_be_bytes().iter().skip(1).take(group.len() - 1));
    }
    bytes
}
