//! What the benchmarks share: a client that costs little, and the name of the machine.

use std::fs;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The kernel counts CPU time for `/proc/<pid>/stat` in this unit on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// One connection that waits for each answer.
pub struct Client {
    stream: TcpStream,
    /// Begins with the last answer.
    pub buffer: Vec<u8>,
}

impl Client {
    /// Connects to a member.
    pub async fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, buffer: vec![0; 4096] }
    }

    /// Sends a request and reads to the end of its answer.
    pub async fn ask(&mut self, request: &[u8]) -> Result<(), String> {
        self.stream.write_all(request).await.map_err(|error| error.to_string())?;
        let mut filled = 0;
        loop {
            let count = self.stream.read(&mut self.buffer[filled..]).await.map_err(|error| error.to_string())?;
            if count == 0 {
                return Err("the member closed the connection".into());
            }
            filled += count;
            if let Some(length) = answer_length(&self.buffer[..filled]) {
                if length == filled {
                    break;
                }
                if length > self.buffer.len() {
                    self.buffer.resize(length, 0);
                }
            }
        }
        // `HTTP/1.1 2..`
        if self.buffer[9] == b'2' {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&self.buffer[..filled]).into_owned())
    }
}

/// The length of the answer that begins here, once its headers are whole.
fn answer_length(bytes: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"\r\ncontent-length: ";
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let at = bytes[..head + 2].windows(NAME.len()).position(|window| window.eq_ignore_ascii_case(NAME))?;
    let digits = bytes[at + NAME.len()..head + 2].iter().take_while(|byte| byte.is_ascii_digit());
    let body = digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    Some(head + 4 + body)
}

/// CPU time of a process so far, in user and in kernel mode.
pub fn cpu_seconds(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The second field is the name in parentheses and may hold anything; what follows has fixed places.
    let rest = &stat[stat.rfind(')').unwrap() + 2..];
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks: f64 = [11, 12].iter().map(|&place| fields[place].parse::<f64>().unwrap()).sum();
    ticks / TICKS_PER_SECOND
}

/// What the figures depend on.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu_info = read("/proc/cpuinfo");
    let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown CPU");
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let memory = read("/proc/meminfo");
    let memory_kib: f64 = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default();
    format!(
        "{}; {cores} cores, {:.0} GiB, Linux {}; load before: {}",
        model.trim_start_matches([' ', '\t', ':']),
        memory_kib / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
    )
}
