//! How identities are parsed from certificates and forwarded to upstreams.

use http::{HeaderMap, HeaderValue};
use rcgen::{DnType, DnValue};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    pki::{Ca, params},
    *,
};
use crate::{
    config::model::ForwardedClientCert,
    tls::{Identity, xfcc},
};

fn identity(names: &[&str]) -> Identity {
    Identity::parse(&Ca::new("ca").leaf(names).der).unwrap()
}

#[test]
fn the_principal_is_the_preferred_name() {
    let principal = |names: &[&str]| identity(names).principal().to_owned();
    assert_eq!(principal(&["a.test", "https://a.test/", "spiffe://mesh/a", "spiffe://mesh/b"]), "spiffe://mesh/a");
    assert_eq!(principal(&["a.test", "https://a.test/"]), "https://a.test/");
    assert_eq!(principal(&["a.test", "b.test"]), "a.test");
    assert_eq!(principal(&[]), "CN=nobody,O=Tests");
    assert_eq!(identity(&["https://a.test/"]).spiffe_id(), None);
    assert_eq!(identity(&["SPIFFE://mesh/a"]).spiffe_id(), Some("SPIFFE://mesh/a"));
}

#[test]
fn names_are_formatted_as_in_openssl() {
    let mut params = params(&[]);
    let mut name = rcgen::DistinguishedName::new();
    name.push(DnType::CountryName, "DE");
    name.push(DnType::StateOrProvinceName, DnValue::Utf8String("Köln".to_owned()));
    name.push(DnType::OrganizationName, "#a, b+c \"d\" \\ <e>;");
    name.push(DnType::OrganizationalUnitName, " spaces ");
    name.push(DnType::CustomDnType(vec![1, 2, 3, 4]), "x");
    name.push(DnType::CustomDnType(vec![1, 2, 840, 113549, 1, 9, 1]), "a@b.test");
    name.push(DnType::CommonName, DnValue::BmpString("ü\n".try_into().unwrap()));
    params.distinguished_name = name;
    params.serial_number = Some(vec![0x80, 0x00, 0x01].into());
    let identity = Identity::parse(&Ca::new("ca").sign(params).der).unwrap();
    // The leading zero of the DER encoding is not part of the number.
    assert_eq!(&*identity.serial, "800001");
    assert_eq!(
        &*identity.subject,
        "CN=\\C3\\BC\\0A,emailAddress=a@b.test,1.2.3.4=#0C0178,OU=\\ spaces\\ ,\
         O=\\#a\\, b\\+c \\\"d\\\" \\\\ \\<e\\>\\;,ST=K\\C3\\B6ln,C=DE"
    );
}

#[test]
fn the_certificate_can_be_read_back_from_its_encoding() {
    let leaf = Ca::new("ca").leaf(&["a.test"]);
    let identity = Identity::parse(&leaf.der).unwrap();
    let encoded = identity.url_encoded_pem();
    assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"%-".contains(&b)), "{encoded}");
    let pem = [("%0A", "\n"), ("%20", " "), ("%2B", "+"), ("%2F", "/"), ("%3D", "=")];
    let pem = pem.iter().fold(encoded.to_owned(), |text, (code, plain)| text.replace(code, plain));
    assert_eq!(pem.replace('\r', ""), leaf.pem.replace('\r', ""));
    assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap(), leaf.der);
    assert_eq!(identity.sha256.len(), 64);
    assert!(!identity.serial.is_empty() && identity.serial.bytes().all(|b| b.is_ascii_hexdigit()));
}

#[test]
fn mutated_certificates_never_panic() {
    let mut random = fastrand::Rng::with_seed(7);
    let whole = Ca::new("ca").leaf(&["a.test", "*.b.test", "10.0.0.1", "spiffe://mesh/a"]).der.to_vec();
    let mut readable = 0;
    for round in 0..20_000 {
        let mut bytes = whole.clone();
        match round % 3 {
            0 => bytes.truncate(random.usize(..bytes.len())),
            _ => (0..=random.usize(..3)).for_each(|_| {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }),
        }
        if round % 5 == 0 {
            let at = random.usize(..=bytes.len());
            bytes.insert(at, random.u8(..));
        }
        if let Ok(identity) = Identity::parse(&bytes.into()) {
            readable += 1;
            // Every parsed identity can be forwarded to an upstream.
            assert!(!xfcc::element(&identity, Some(&identity)).is_empty());
            assert!(identity.principal().len() < 4096);
        }
    }
    assert!(readable > 100, "{readable}");
}

fn connection(peer: Option<&[&str]>) -> ConnectionTls {
    let ca = Ca::new("ca");
    let chain: Vec<_> = peer.iter().map(|names| ca.leaf(names).der).collect();
    let local = identity(&["web.test", "spiffe://mesh/web"]);
    ConnectionTls::new(("TLSv1.3", ""), None, None, &chain, Some(Arc::new(local))).unwrap()
}

/// Applies a policy to these values of the field.
fn applied(policy: ForwardedClientCert, tls: Option<&ConnectionTls>, before: &[&str]) -> Vec<String> {
    let mut fields = HeaderMap::new();
    for value in before {
        fields.append("x-forwarded-client-cert", HeaderValue::from_str(value).unwrap());
    }
    fields.insert("host", HeaderValue::from_static("a.test"));
    xfcc::apply(&mut fields, policy, tls);
    assert!(fields.contains_key("host"));
    fields.get_all("x-forwarded-client-cert").iter().map(|v| v.to_str().unwrap().to_owned()).collect()
}

#[test]
fn the_element_has_envoys_format() {
    let tls = connection(Some(&["a.test", "b.test", "https://mesh/a", "http://a.test/?b=c,d;e"]));
    let peer = tls.peer.as_ref().unwrap();
    let expected = format!(
        "By=spiffe://mesh/web;Hash={};Cert=\"{}\";Subject=\"CN=a.test,O=Tests\";URI=https://mesh/a;\
         URI=\"http://a.test/?b=c,d;e\";DNS=a.test;DNS=b.test",
        peer.sha256,
        peer.url_encoded_pem()
    );
    assert_eq!(applied(ForwardedClientCert::Set, Some(&tls), &[]), [expected]);
    let nameless = connection(Some(&[]));
    let [element] = &applied(ForwardedClientCert::Set, Some(&nameless), &[])[..] else { panic!() };
    assert!(element.ends_with(";Subject=\"CN=nobody,O=Tests\";URI="), "{element}");
}

#[test]
fn a_clients_own_field_is_dropped_unless_the_policy_keeps_it() {
    use ForwardedClientCert::{Append, Forward, Set, Strip};
    let (mutual, anonymous) = (connection(Some(&["spiffe://mesh/a"])), connection(None));
    let element = &applied(Set, Some(&mutual), &[])[0];
    let forged = ["By=x;URI=spiffe://mesh/admin", "URI=y"];
    for tls in [None, Some(&anonymous), Some(&mutual)] {
        assert_eq!(applied(Strip, tls, &forged), [""; 0]);
        assert_eq!(applied(Forward, tls, &forged), forged);
    }
    for tls in [None, Some(&anonymous)] {
        assert_eq!(applied(Set, tls, &forged), [""; 0]);
        assert_eq!(applied(Append, tls, &forged), [""; 0]);
    }
    assert_eq!(&applied(Set, Some(&mutual), &forged)[..], [element.as_str()]);
    assert_eq!(applied(Append, Some(&mutual), &forged), [format!("By=x;URI=spiffe://mesh/admin,URI=y,{element}")]);
    assert_eq!(&applied(Append, Some(&mutual), &[])[..], [element.as_str()]);
}

/// X509-SVID section 2: with several identities, a client could pick whichever one a rule accepts.
#[test]
fn a_workload_has_exactly_one_identity() {
    let ca = Ca::new("all");
    let known = |names: &[&str]| {
        let chain = [ca.leaf(names).der.clone()];
        crate::tls::ConnectionTls::new(("TLSv1.3", ""), None, None, &chain, None).map_err(|e| e.to_string())
    };
    for names in [&["spiffe://a/x"][..], &["a.test"], &["https://a", "https://b"], &["spiffe://a/x", "a.test"]] {
        assert!(known(names).is_ok(), "{names:?}");
    }
    for names in [["spiffe://a/x", "spiffe://b/y"], ["https://a", "spiffe://a/x"]] {
        let error = known(&names).expect_err("rejected");
        assert_eq!(error, "the client's certificate has a SPIFFE ID and another URI: it must have exactly one URI");
    }
}
