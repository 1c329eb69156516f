// The wire of gridbeam's directory, written from its documents alone: protobuf fields by number, envelopes, keys, topics.
import { createHash } from 'node:crypto'

import { RecordEnvelope } from '@libp2p/peer-record'
import { peerIdFromPublicKey } from '@libp2p/peer-id'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import * as Digest from 'multiformats/hashes/digest'

const text = new TextEncoder()

// ---- protobuf ----

function varint (n) {
  const out = []
  for (n = BigInt(n); n > 127n; n >>= 7n) out.push(Number(n & 127n) | 128)
  out.push(Number(n))
  return out
}

const bytesOf = (v) => typeof v === 'string' ? text.encode(v) : v

/** The bytes of [number, value] pairs: a number or bigint is a varint; a string, bytes or an array of pairs has a length. */
export function encode (fields) {
  const out = []
  for (const [number, value] of fields) {
    if (typeof value === 'number' || typeof value === 'bigint') {
      out.push(...varint(number << 3), ...varint(value))
    } else {
      const b = Array.isArray(value) ? encode(value) : bytesOf(value)
      out.push(...varint(number << 3 | 2), ...varint(b.length), ...b)
    }
  }
  return Uint8Array.from(out)
}

/** Field number -> values in order: bigints for varints, bytes for what has a length. */
export function decode (bytes) {
  const fields = new Map()
  let at = 0
  const read = () => {
    let n = 0n
    for (let shift = 0n; shift < 64n; shift += 7n) {
      const b = bytes[at++]
      if (b === undefined) throw new Error('a protobuf ends in the middle')
      n |= BigInt(b & 127) << shift
      if (b < 128) return n
    }
    throw new Error('a varint is longer than 64 bits')
  }
  while (at < bytes.length) {
    const key = Number(read())
    let value
    switch (key & 7) {
      case 0: value = read(); break
      case 1: value = bytes.subarray(at, at += 8); break
      case 2: { const n = Number(read()); value = bytes.subarray(at, at += n); break }
      case 5: value = bytes.subarray(at, at += 4); break
      default: throw new Error(`wire type ${key & 7}`)
    }
    if (at > bytes.length) throw new Error('a protobuf ends in the middle')
    fields.set(key >> 3, [...fields.get(key >> 3) ?? [], value])
  }
  return fields
}

export const number = (fields, n) => Number(fields.get(n)?.[0] ?? 0)
export const string = (fields, n) => new TextDecoder().decode(fields.get(n)?.[0])

// ---- what is signed ----

export const CAPABILITY = { domain: 'gridbeam/capability/v1', type: '/gridbeam/capability' }
export const AVAILABILITY = { domain: 'gridbeam/availability/v1', type: '/gridbeam/availability' }

export async function seal ({ domain, type }, payload, key) {
  const record = { domain, codec: text.encode(type), marshal: () => payload, equals: () => false }
  return (await RecordEnvelope.seal(record, key)).marshal()
}

/** Verifies an envelope of a kind; returns who signed it and its decoded payload. */
export async function open ({ domain, type }, bytes) {
  const envelope = await RecordEnvelope.openAndCertify(bytes, domain)
  if (new TextDecoder().decode(envelope.payloadType) !== type) throw new Error('the envelope holds something else')
  return { signer: peerIdFromPublicKey(envelope.publicKey), fields: decode(envelope.payload) }
}

// ---- keys and topics ----

export const recordKey = (peer) => text.encode(`/gb-cap/${peer}`)

export const sha256 = (bytes) => createHash('sha256').update(bytes).digest()

/** The provider key of an attribute at level 0. */
export function providerKey (attribute) {
  return CID.createV1(raw.code, Digest.create(0x12, sha256(text.encode(`/gridbeam/1/${attribute}/0/`))))
}

/** The heartbeats' topic of a GPU model, 'none' for nodes without. */
export const topicOf = (slug) => `/gridbeam/1/avail/${(sha256(text.encode(slug))[0] % 32).toString(16).padStart(2, '0')}`
