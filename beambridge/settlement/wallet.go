package settlement

import (
	"errors"
	"fmt"
	"math/big"
)

// ErrWallet means a text that is no address that can be paid.
var ErrWallet = errors.New("settlement: not a wallet")

// Wallet is a Solana address, 32 bytes; zero is none.
type Wallet [32]byte

const base58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

// mints are the addresses of tokens themselves, which people paste by mistake: what is sent there is lost.
var mints = map[string]string{
	"rndrizKT3MK1iimdxRdWabcF7Zg7AR5T4nud4EkHBof":  "RENDER",
	"EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v": "USDC",
	"Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB": "USDT",
	"So11111111111111111111111111111111111111112":  "wrapped SOL",
}

// ParseWallet reads a wallet's base58 text, which has to give exactly 32 bytes, not all zero and not a token's
// own address (settlement.md 9). It returns ErrWallet saying what is wrong.
func ParseWallet(text string) (Wallet, error) {
	if name, ok := mints[text]; ok {
		return Wallet{}, fmt.Errorf("%w: %s is the address of the %s token itself", ErrWallet, text, name)
	}
	b, err := decode58(text)
	switch {
	case err != nil:
		return Wallet{}, err
	case len(b) != 32:
		return Wallet{}, fmt.Errorf("%w: %q is %d bytes, want 32", ErrWallet, text, len(b))
	case Wallet(b) == Wallet{}:
		return Wallet{}, fmt.Errorf("%w: %q is all zero", ErrWallet, text)
	}
	return Wallet(b), nil
}

func decode58(text string) ([]byte, error) {
	if len(text) == 0 || len(text) > 44 { // 58^44 > 2^256
		return nil, fmt.Errorf("%w: %d characters, want 32..44", ErrWallet, len(text))
	}
	n, zeros, leading := new(big.Int), 0, true
	for i := range len(text) {
		v := -1
		for k := range len(base58) {
			if base58[k] == text[i] {
				v = k
				break
			}
		}
		if v < 0 {
			return nil, fmt.Errorf("%w: %q at place %d is not in the alphabet", ErrWallet, text[i], i+1)
		}
		if leading = leading && v == 0; leading {
			zeros++
		}
		n.Mul(n, big.NewInt(58)).Add(n, big.NewInt(int64(v)))
	}
	return append(make([]byte, zeros), n.Bytes()...), nil
}

// String returns the base58 text.
func (w Wallet) String() string {
	n := new(big.Int).SetBytes(w[:])
	var out []byte
	for d := new(big.Int); n.Sign() > 0; {
		n.QuoRem(n, big.NewInt(58), d)
		out = append(out, base58[d.Int64()])
	}
	for i := 0; i < len(w) && w[i] == 0; i++ {
		out = append(out, base58[0])
	}
	for i, k := 0, len(out)-1; i < k; i, k = i+1, k-1 {
		out[i], out[k] = out[k], out[i]
	}
	return string(out)
}

// OnCurve says whether the wallet is a point of Ed25519, so that a key may exist for it; an address off the
// curve is a program's vault, which is allowed but worth a warning.
func (w Wallet) OnCurve() bool {
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	y := new(big.Int)
	for i := range 32 { // little-endian, the top bit is the sign of x
		b := w[31-i]
		if i == 0 {
			b &= 0x7f
		}
		y.Lsh(y, 8).Or(y, big.NewInt(int64(b)))
	}
	if y.Cmp(p) >= 0 {
		return false
	}
	// -x² + y² = 1 + d x² y² with d = -121665/121666: x² = (y² - 1) / (d y² + 1).
	d := new(big.Int).Mul(big.NewInt(-121665), new(big.Int).ModInverse(big.NewInt(121666), p))
	yy := new(big.Int).Mul(y, y)
	num := new(big.Int).Sub(yy, big.NewInt(1))
	den := new(big.Int).Mul(d, yy)
	den.Add(den, big.NewInt(1)).Mod(den, p)
	num.Mul(num, new(big.Int).ModInverse(den, p)).Mod(num, p) // den is never 0: -1/d is no square
	return num.Sign() == 0 && w[31]&0x80 == 0 || num.Sign() > 0 && big.Jacobi(num, p) == 1
}
