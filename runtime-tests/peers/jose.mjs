// npm `jose` as the other side of a sealed token: reads JSON from standard input, writes JSON.
//
//     node jose.mjs open   {"sealed","key"}             -> {"header","plaintext"}
//     node jose.mjs seal   {"header","plaintext","key"} -> {"sealed"}
//
// The key is base64, as in Key Vault.

import { CompactEncrypt, compactDecrypt } from 'jose'
import { readFileSync } from 'node:fs'

const given = JSON.parse(readFileSync(0, 'utf8'))
const key = Buffer.from(given.key, 'base64')

const does = {
  async open() {
    const { plaintext, protectedHeader } = await compactDecrypt(given.sealed, key, {
      keyManagementAlgorithms: ['dir'],
      contentEncryptionAlgorithms: ['A256GCM'],
    })
    return { header: protectedHeader, plaintext: JSON.parse(new TextDecoder().decode(plaintext)) }
  },
  async seal() {
    const plaintext = new TextEncoder().encode(JSON.stringify(given.plaintext))
    return { sealed: await new CompactEncrypt(plaintext).setProtectedHeader(given.header).encrypt(key) }
  },
}
console.log(JSON.stringify(await does[process.argv[2]]()))
