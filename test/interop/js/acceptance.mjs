// An independent libp2p client in a gridbeam network: the Go test at the root starts six servers and this program, and
// answers its questions on standard input. Each line that it prints names what has been shown.
import { createInterface } from 'node:readline'

import './polyfill.mjs'

const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { generateKeyPair } = await import('@libp2p/crypto/keys')
const { gossipsub } = await import('@libp2p/gossipsub')
const { identify } = await import('@libp2p/identify')
const { kadDHT, passthroughMapper } = await import('@libp2p/kad-dht')
const { peerIdFromString } = await import('@libp2p/peer-id')
const { ping } = await import('@libp2p/ping')
const { tcp } = await import('@libp2p/tcp')
const { multiaddr } = await import('@multiformats/multiaddr')
const { createLibp2p } = await import('libp2p')
const wire = await import('./wire.mjs')

const servers = process.env.SERVERS.split(',').map((a) => multiaddr(a))
const subject = JSON.parse(process.env.SUBJECT) // what the Go side knows of the node whose record is read
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()

function check (holds, what) {
  if (!holds) throw new Error(what)
}

/** Tells the Go side, and waits until it has seen for itself. */
async function ask (question) {
  console.log(question)
  const { value } = await lines.next()
  check(value === 'yes', `the Go side does not agree: ${question}: ${value}`)
}

const key = await generateKeyPair('Ed25519')
const node = await createLibp2p({
  privateKey: key,
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => false },
  services: {
    identify: identify(),
    ping: ping(),
    dht: kadDHT({
      protocol: '/gridbeam/kad/1.0.0',
      clientMode: true,
      peerInfoMapper: passthroughMapper, // else loopback addresses vanish
      allowQueryWithZeroPeers: true,
      validators: { 'gb-cap': validate },
      selectors: { 'gb-cap': select }
    }),
    pubsub: gossipsub({ allowPublishToZeroTopicPeers: true })
  }
})
const { dht, pubsub } = node.services
const me = node.peerId
const signal = () => AbortSignal.timeout(20_000)

/** Accepts what its owner has signed and nothing else, as any reader has to: holders do not validate what they serve. */
async function validate (recordKey, value) {
  const { signer } = await wire.open(wire.CAPABILITY, value)
  check(new TextDecoder().decode(recordKey) === `/gb-cap/${signer}`, 'a record of somebody else')
}

/** The highest sequence number, the first among equals. */
function select (_, values) {
  let best = 0
  const seq = values.map((v) => wire.decode(wire.decode(v).get(3)[0]).get(4)[0])
  seq.forEach((n, i) => { if (n > seq[best]) best = i })
  return best
}

/** A record of this peer's own; change makes it wrong. */
function capability (change = {}) {
  const now = Date.now()
  const c = { peer: me, seq: BigInt(now) * 1000n, issued: now, expires: now + 90 * 60_000, agent: 'js/1', more: [], ...change }
  return wire.encode([
    [1, 1], [2, 1], [3, c.peer.toMultihash().bytes], [4, c.seq], [5, c.issued], [6, c.expires], [7, c.agent],
    [16, [[1, 'linux'], [2, 'amd64'], [6, 12], [10, 32_000_000_000n]]], ...c.more
  ])
}

/** Puts a value and returns how many servers confirmed it. */
async function put (at, value) {
  const acks = new Set()
  for await (const e of dht.put(at, value, { signal: signal() })) {
    if (e.name === 'PEER_RESPONSE' && e.messageName === 'PUT_VALUE' && e.record != null) acks.add(e.from.toString())
  }
  return acks.size
}

try {
  for (const a of servers) await node.dial(a, { signal: signal() })
  for (const a of servers) await node.services.ping.ping(a, { signal: signal() })
  while (dht.routingTable.size < servers.length) await new Promise((resolve) => setTimeout(resolve, 20)) // identify is under way
  console.log('joined')

  // A record of a Go node: found, verified, decoded.
  let found
  for await (const e of dht.get(wire.recordKey(subject.peer), { signal: signal() })) if (e.name === 'VALUE') found = e.value
  check(found != null, 'the DHT does not know the Go node')
  const { signer, fields } = await wire.open(wire.CAPABILITY, found)
  check(signer.toString() === subject.peer, `signed by ${signer}`)
  const gpu = wire.decode(fields.get(17)[0])
  const host = wire.decode(fields.get(16)[0])
  check(wire.string(gpu, 2) === subject.gpu && wire.number(gpu, 4) === subject.count, 'another GPU')
  check(wire.number(host, 6) === subject.cores, 'another number of cores')
  check(String(fields.get(4)[0]) === subject.seq, 'another sequence number')
  console.log('read a record')

  // Providers.
  const providers = new Set()
  for await (const e of dht.findProviders(wire.providerKey('all'), { signal: signal() })) {
    if (e.name === 'PROVIDER') e.providers.forEach((p) => providers.add(p.id.toString()))
  }
  check(subject.providers.every((p) => providers.has(p)), `providers are ${[...providers]}`)
  const ofModel = new Set()
  for await (const e of dht.findProviders(wire.providerKey(`gpu/${subject.gpu}`), { signal: signal() })) {
    if (e.name === 'PROVIDER') e.providers.forEach((p) => ofModel.add(p.id.toString()))
  }
  check(ofModel.size === 1 && ofModel.has(subject.peer), `providers of the model are ${[...ofModel]}`)
  console.log('found providers')

  // A heartbeat of the Go node.
  const heard = new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error('no heartbeat within 20 s')), 20_000)
    pubsub.addEventListener('message', async ({ detail }) => {
      if (detail.topic !== wire.topicOf(subject.gpu)) return
      try {
        const beat = await wire.open(wire.AVAILABILITY, detail.data)
        check(beat.signer.toString() === subject.peer && detail.from.toString() === subject.peer, `a heartbeat of ${beat.signer}`)
        check(wire.sha256(found).subarray(0, 8).equals(Buffer.from(beat.fields.get(8)[0])), 'it speaks of another record')
        check(wire.number(wire.decode(beat.fields.get(9)[0]), 2) === subject.free, 'another number of free GPUs')
        clearTimeout(late)
        resolve()
      } catch (err) {
        reject(err)
      }
    })
  })
  pubsub.subscribe(wire.topicOf(subject.gpu))
  await heard
  console.log('heard a heartbeat')

  // A record of this peer's own, at all six servers, and a heartbeat.
  const mine = await wire.seal(wire.CAPABILITY, capability(), key)
  check(await put(wire.recordKey(me), mine) === servers.length, 'not all servers took a good record')
  for await (const _ of dht.provide(wire.providerKey('all'), { signal: signal() })); // eslint-disable-line no-unused-vars
  await ask(`stored ${me}`)
  const beat = await wire.seal(wire.AVAILABILITY, wire.encode([
    [1, 1], [2, me.toMultihash().bytes], [3, BigInt(Date.now()) * 1000n], [4, Date.now()], [5, 30], [6, 1],
    [8, wire.sha256(mine).subarray(0, 8)]
  ]), key)
  pubsub.subscribe(wire.topicOf('none'))
  while (pubsub.getSubscribers(wire.topicOf('none')).length === 0) await new Promise((resolve) => setTimeout(resolve, 20))
  await pubsub.publish(wire.topicOf('none'), beat)
  await ask(`beats ${me}`)

  // What no server may take. The forger is this peer itself, or somebody who would be the Go node.
  const wrong = {
    forged: async () => { const b = mine.slice(); b[b.length - 1] ^= 1; return [wire.recordKey(me), b] },
    'another payload under the signature': async () => {
      const b = Buffer.from(mine)
      b.write('jz/1', b.indexOf('js/1'))
      return [wire.recordKey(me), b]
    },
    'signed by somebody else': async () => [wire.recordKey(subject.peer), await wire.seal(wire.CAPABILITY, capability({ peer: peerIdFromString(subject.peer) }), key)],
    'of another peer': async () => [wire.recordKey(subject.peer), mine],
    'under another domain': async () => [wire.recordKey(me), await wire.seal({ ...wire.CAPABILITY, domain: 'gridbeam/availability/v1' }, capability(), key)],
    'of another type': async () => [wire.recordKey(me), await wire.seal({ ...wire.CAPABILITY, type: '/gridbeam/availability' }, capability(), key)],
    expired: async () => [wire.recordKey(me), await wire.seal(wire.CAPABILITY, capability({ issued: Date.now() - 3_600_000, expires: Date.now() - 1000 }), key)],
    'of the future': async () => [wire.recordKey(me), await wire.seal(wire.CAPABILITY, capability({ issued: Date.now() + 600_000 }), key)],
    'valid for a day': async () => [wire.recordKey(me), await wire.seal(wire.CAPABILITY, capability({ expires: Date.now() + 86_400_000 }), key)],
    'too large': async () => [wire.recordKey(me), await wire.seal(wire.CAPABILITY, capability({ more: [[99, new Uint8Array(4096)]] }), key)],
    'out of bounds': async () => [wire.recordKey(me), await wire.seal(wire.CAPABILITY, capability({ agent: 'x'.repeat(33) }), key)],
    'older than its predecessor': async () => [wire.recordKey(me), await wire.seal(wire.CAPABILITY, capability({ seq: 1n }), key)],
    'under another form of the key': async () => [wire.recordKey(me.toCID()), await wire.seal(wire.CAPABILITY, capability(), key)]
  }
  for (const [what, make] of Object.entries(wrong)) {
    const acks = await put(...await make())
    check(acks === 0, `${acks} servers took a record that is ${what}`)
    console.log(`refused: ${what}`)
  }
  await ask(`unchanged ${me}`)
  await node.stop()
  console.log('done')
  process.exit(0)
} catch (err) {
  console.error(err)
  process.exit(1)
}
