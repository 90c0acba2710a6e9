//! What is asked for in a handshake.

use super::*;

#[test]
fn a_host_is_what_is_left_of_the_port() {
    for (authority, host) in [
        ("api.example.com", "api.example.com"),
        ("api.example.com:8443", "api.example.com"),
        ("[2001:db8::1]:80", "[2001:db8::1]"),
        ("[2001:db8::1]", "[2001:db8::1]"),
        ("2001:db8::1", "2001:db8::1"),
        ("api.example.com:", "api.example.com"),
    ] {
        assert_eq!(without_port(authority), host, "{authority}");
    }
}

fn asked(tls: &TlsOrigination, host: Option<&str>) -> Option<ServerName<'static>> {
    let address = EndpointAddress::Plain(SocketAddr::from(([192, 0, 2, 1], 443)));
    let to = Destination {
        address: &address,
        others: &[],
        remote: None,
        transport: &Transport::default(),
        inside: Inside::Http1,
        host,
        proxied: None,
        keepalive: None,
    };
    server_name(tls, &to).ok()
}

#[test]
fn the_host_is_asked_for_only_where_the_rule_says_so() {
    let name = |text: &str| ServerName::try_from(text.to_owned()).ok();
    let fixed = TlsOrigination { server_name: Some("fixed.example.com".into()), ..TlsOrigination::default() };
    let by_host = TlsOrigination { server_name_from_host: true, ..fixed.clone() };
    assert_eq!(asked(&fixed, Some("web.shop")), name("fixed.example.com"));
    assert_eq!(asked(&by_host, Some("web.shop:80")), name("web.shop"));
    assert_eq!(asked(&by_host, Some("[2001:db8::1]:80")), name("2001:db8::1"), "an address is compared, and never sent");
    assert_eq!(asked(&by_host, None), name("fixed.example.com"));
    assert_eq!(asked(&TlsOrigination::default(), None), name("192.0.2.1"));
    assert_eq!(asked(&by_host, Some("no name")), None);
}

#[test]
fn ports_of_the_proxy_are_its_own_by_whatever_address_of_this_host() {
    for (address, is_its) in [
        ("127.0.0.1:15000", true),
        ("127.9.9.9:15020", true),
        ("0.0.0.0:15000", true),
        ("[::]:15000", true),
        ("[::1]:15000", true),
        ("[::ffff:127.0.0.1]:15000", true),
        ("127.0.0.1:8080", false),
        ("10.0.0.1:15000", false),
    ] {
        assert_eq!(address.parse().map(|address| is_own(&address)), Ok(is_its), "{address}");
    }
}

#[tokio::test]
async fn a_connection_is_probed_as_its_cluster_says_and_else_as_the_system_does() -> io::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let stream = TcpStream::connect(listener.local_addr()?).await?;
    let socket = socket2::SockRef::from(&stream);
    let seen = || {
        io::Result::Ok((
            socket.keepalive()?,
            socket.tcp_keepalive_time()?,
            socket.tcp_keepalive_interval()?,
            socket.tcp_keepalive_retries()?,
        ))
    };
    let (_, _, interval, retries) = seen()?;
    let seconds = Duration::from_secs;
    socket.set_tcp_keepalive(&probes(None))?;
    assert_eq!(seen()?, (true, TCP_KEEPALIVE_INTERVAL, TCP_KEEPALIVE_INTERVAL, retries));
    socket.set_tcp_keepalive(&probes(Some(&TcpKeepalive { time: Some(seconds(7)), interval: Some(seconds(3)), probes: Some(4) })))?;
    assert_eq!(seen()?, (true, seconds(7), seconds(3), 4));

    let stream = TcpStream::connect(listener.local_addr()?).await?;
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_keepalive(&probes(Some(&TcpKeepalive { time: Some(seconds(9)), interval: None, probes: None })))?;
    assert_eq!(
        (socket.tcp_keepalive_time()?, socket.tcp_keepalive_interval()?),
        (seconds(9), interval),
        "what is not said is the system's"
    );
    Ok(())
}
