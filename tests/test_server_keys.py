"Who may ask: keys and scopes, on a real server; what starts and what does not."
import datetime
import ipaddress
import os
import signal
import ssl

import httpx
import pytest
from server_kit import free_port, png, start
from typer.testing import CliRunner

from sads_jax.cli.main import app
from sads_jax.serving.keys import add_key, read_keys, remove_key

CALLS = {'predict': ('POST', '/predict'), 'batch': ('POST', '/predict/batch'),
    'infer': ('POST', '/v2/models/sads/infer'), 'change': ('POST', '/admin/models'), 'show': ('GET', '/admin/models')}
OPEN = '/livez', '/readyz', '/startupz', '/health', '/v2', '/v2/health/ready', '/docs', '/openapi.json'
MAY = {'line': {'predict', 'batch', 'infer'}, 'person': set(), 'boss': set(CALLS)}


@pytest.fixture(scope='module')
def guarded(tmp_path_factory):
    "A server with three keys"
    path = tmp_path_factory.mktemp('keys')/'keys.json'
    keys = {name: add_key(path, name, [scope]) for name, scope in zip(MAY, ('predict', 'review', 'admin'))}
    p, url = start(api_keys=str(path))
    yield url, keys, path
    os.killpg(p.pid, signal.SIGKILL)
    out, _ = p.communicate()
    assert not any(k in out for k in keys.values())

def status(url, call, **headers):
    verb, path = CALLS[call]
    return httpx.request(verb, url + path, content=b'' if verb == 'POST' else None, headers=headers).status_code

def test_the_table_of_keys_and_scopes(guarded):
    url, keys, _ = guarded
    for call in CALLS:
        assert status(url, call) == status(url, call, authorization='Bearer sads_wrong') == 401
        for name, may in MAY.items():
            for headers in ({'authorization': f'Bearer {keys[name]}'}, {'x-api-key': keys[name]}):
                code = status(url, call, **headers)
                assert (code not in (401, 403)) == (call in may) and (call in may or code == 403), (call, name, code)
    assert [httpx.get(url + path).status_code for path in OPEN] == [200]*len(OPEN)

def test_a_key_that_may_is_answered_and_a_removed_one_is_not(guarded):
    url, keys, path = guarded
    ask = lambda key: httpx.post(f'{url}/predict', content=png(), headers={'content-type': 'image/png',
        'authorization': f'Bearer {key}'}, timeout=30)
    assert ask(keys['line']).status_code == 200
    passing = add_key(path, 'visitor', ['predict'])
    import time
    time.sleep(1.1)
    assert ask(passing).status_code == 200
    remove_key(path, 'visitor')
    time.sleep(1.1)
    r = ask(passing)
    assert (r.status_code, r.headers['www-authenticate']) == (401, 'Bearer') and passing not in r.text

def test_without_keys_the_network_is_not_served(tmp_path):
    p, _ = start(host='0.0.0.0', api_keys=str(tmp_path/'none.json'), wait=False)
    out, _ = p.communicate(timeout=60)
    assert p.returncode == 1 and 'listens to the network, and there is no API key' in out and 'sads keys add' in out

def test_keys_are_made_shown_and_removed(tmp_path):
    (tmp_path/'settings.ini').write_text(f'[sads]\napi_keys = {tmp_path}/keys.json\n')
    run = lambda *a: CliRunner().invoke(app, ['keys', *a, '--settings', str(tmp_path/'settings.ini')])
    made = run('add', 'line-3', '--scope', 'predict', '--scope', 'review')
    key = made.stdout.strip()
    assert made.exit_code == 0 and key.startswith('sads_') and key not in (tmp_path/'keys.json').read_text()
    shown = run('list').output
    assert 'line-3' in shown and 'predict, review' in shown and key not in shown
    assert run('add', 'line-3').exit_code == 1 and run('add', 'x', '--scope', 'everything').exit_code == 1
    assert run('remove', 'line-3').exit_code == 0 and read_keys(tmp_path/'keys.json') == []
    assert run('remove', 'line-3').exit_code == 1

def certificate(folder):
    "A certificate of our own for 127.0.0.1"
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'station')])
    cert = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(7).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]), False)
        .sign(key, hashes.SHA256()))
    (folder/'cert.pem').write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (folder/'key.pem').write_bytes(key.private_bytes(serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))

def test_https(tmp_path):
    certificate(tmp_path)
    port = free_port()
    p, _ = start(port=port, wait=False, tls_certificate=str(tmp_path/'cert.pem'), tls_key=str(tmp_path/'key.pem'))
    try:
        assert p.stdout.readline() == 'ready\n'
        context = ssl.create_default_context(cafile=tmp_path/'cert.pem')
        r = httpx.post(f'https://127.0.0.1:{port}/predict', content=png(), headers={'content-type': 'image/png'},
            verify=context, timeout=30)
        assert r.status_code == 200
    finally:
        os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
